"""The worker: whoever joins whenever gets what it would get alone; what is late, unwanted or too much is dealt with, and nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest
import torch

from omni.inference.engine import Batch, Prompt
from omni.inference.omni import Omni
from omni.inference.sampling import Sampling
from omni.server.worker import Job, Overloaded, Piece, ShuttingDown, TimeLimitExceeded, Worker, WorkerFailed

QUESTIONS = ["What colour is it?", "Hello!", "There are two small stars, and one thing. What?", "No", "The circle is red. Yes?"]
FREE = Sampling(temperature=1.2, max_new_tokens=40)


def prompt(omni: Omni, text: str, reserve: int = 40) -> Prompt:
    return omni.prompt([{"role": "user", "content": text}], reserve=reserve)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 300))


def made(omni: Omni, **settings: Any) -> Worker:
    return Worker(omni, **{"max_batch": 8, "max_queue": 8, "time_limit_s": 300.0, **settings})


async def collect(worker: Worker, job: Job) -> list[Piece]:
    return [piece async for piece in worker.pieces(job)]


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_replies_that_join_a_running_batch_are_those_of_the_engine_alone(omni: Omni) -> None:
    async def serve() -> list[str]:
        worker = made(omni, max_batch=3)
        worker.start()
        tasks = []
        for seed, question in enumerate(QUESTIONS * 2):
            sampling = Sampling(temperature=1.2, max_new_tokens=10 + 3 * seed, seed=seed)
            job = worker.submit(Job(prompt=prompt(omni, question), sampling=sampling))
            tasks.append(asyncio.create_task(collect(worker, job)))
            await asyncio.sleep(0.01)
        texts = [text_of(await task) for task in tasks]
        await worker.stop()
        return texts

    alone = [
        omni.engine.generate([prompt(omni, question)], Sampling(temperature=1.2, max_new_tokens=10 + 3 * seed, seed=seed))[0].text
        for seed, question in enumerate(QUESTIONS * 2)
    ]
    assert run(serve()) == alone


def test_a_spoken_reply_is_what_say_says(omni: Omni) -> None:
    async def serve() -> list[tuple[str, torch.Tensor, np.ndarray]]:
        worker = made(omni)
        worker.start()
        jobs = [worker.submit(Job(prompt=prompt(omni, q), sampling=FREE, line=omni.speaker.line("bob", Sampling()))) for q in QUESTIONS[:3]]
        found = []
        for pieces in await asyncio.gather(*(collect(worker, job) for job in jobs)):
            spoken = [piece.speech for piece in pieces if piece.speech is not None]
            found.append((text_of(pieces), torch.cat([s.codes for s in spoken]), np.concatenate([s.waveform for s in spoken])))
        assert [job.n_frames for job in jobs] == [len(codes) for _, codes, _ in found]
        assert all({"started", "read", "first_text", "first_audio", "done"} == set(job.marks) for job in jobs)
        await worker.stop()
        return found

    for text, codes, waveform in run(serve()):
        whole = omni.say(text, "bob")
        assert torch.equal(codes, whole.codes)
        np.testing.assert_allclose(waveform, whole.waveform, atol=1e-3)


def test_transcripts_come_beside_replies(omni: Omni) -> None:
    wave = (np.random.default_rng(0).standard_normal(16_000 * 45) * 0.1).astype(np.float32)

    async def serve() -> tuple[list[Piece], str]:
        worker = made(omni)
        worker.start()
        heard = worker.submit(Job(transcripts=omni.transcripts(wave)))
        said = worker.submit(Job(prompt=prompt(omni, "Hello!"), sampling=FREE))
        pieces, text = await asyncio.gather(collect(worker, heard), collect(worker, said))
        await worker.stop()
        return pieces, text_of(text)

    pieces, text = run(serve())
    texts = [piece.transcript.text for piece in pieces if piece.transcript is not None]
    assert len(texts) > 2
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    assert texts[-1] == omni.transcribe(wave)
    assert text == omni.engine.generate([prompt(omni, "Hello!")], FREE)[0].text


def test_a_full_queue_refuses_and_is_free_again_when_clients_go(omni: Omni) -> None:
    async def serve() -> None:
        worker = made(omni, max_batch=1, max_queue=2)
        worker.start()
        long = Sampling(temperature=2.0, max_new_tokens=96)
        jobs = [worker.submit(Job(prompt=prompt(omni, "Hello!"), sampling=long)) for _ in range(3)]
        with pytest.raises(Overloaded) as caught:
            worker.submit(Job(prompt=prompt(omni, "No")))
        assert caught.value.retry_after_s >= 1
        for job in jobs:
            worker.cancel(job)
        while worker.running or worker.waiting:
            await asyncio.sleep(0.01)
        assert text_of(await collect(worker, worker.submit(Job(prompt=prompt(omni, "No"), sampling=FREE)))) == (
            omni.engine.generate([prompt(omni, "No")], FREE)[0].text
        )
        await worker.stop()

    run(serve())


def test_who_leaves_the_queue_frees_a_place_at_once(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, step = threading.Event(), Batch.step
    monkeypatch.setattr(Batch, "step", lambda batch: gate.wait(60) and step(batch))

    async def serve() -> str:
        worker = made(omni, max_batch=1, max_queue=1)
        worker.start()
        running = worker.submit(Job(prompt=prompt(omni, "Hello!"), sampling=FREE))
        while running not in worker.running:
            await asyncio.sleep(0.01)
        waiting = worker.submit(Job(prompt=prompt(omni, "No")))
        with pytest.raises(Overloaded):
            worker.submit(Job(prompt=prompt(omni, "No")))
        worker.cancel(waiting)
        last = worker.submit(Job(prompt=prompt(omni, "No"), sampling=FREE))
        assert worker.running == [running]
        gate.set()
        await collect(worker, running)
        text = text_of(await collect(worker, last))
        await worker.stop()
        return text

    assert run(serve()) == omni.engine.generate([prompt(omni, "No")], FREE)[0].text


def test_a_cancelled_neighbour_changes_nothing(omni: Omni) -> None:
    async def serve() -> str:
        worker = made(omni)
        worker.start()
        jobs = [worker.submit(Job(prompt=prompt(omni, q), sampling=FREE, line=omni.speaker.line(None, FREE))) for q in QUESTIONS]
        tasks = [asyncio.create_task(collect(worker, job)) for job in jobs]
        for job in (jobs[0], jobs[2], jobs[4]):
            worker.cancel(job)
            await asyncio.sleep(0.02)
        text = text_of(await tasks[1])
        await tasks[3]
        await worker.stop()
        assert not worker.running
        return text

    assert run(serve()) == omni.engine.generate([prompt(omni, QUESTIONS[1])], FREE)[0].text


def test_late_jobs_are_told_so(omni: Omni) -> None:
    async def serve() -> None:
        worker = made(omni, max_batch=1, time_limit_s=0.05)
        worker.start()
        jobs = [worker.submit(Job(prompt=prompt(omni, "Hello!"), sampling=Sampling(temperature=2.0, max_new_tokens=96))) for _ in range(6)]
        results = await asyncio.gather(*(collect(worker, job) for job in jobs), return_exceptions=True)
        assert isinstance(results[-1], TimeLimitExceeded)
        await worker.stop()

    run(serve())


def test_stopping_finishes_what_was_accepted_and_takes_no_more(omni: Omni) -> None:
    async def serve() -> list[str]:
        worker = made(omni, max_batch=2)
        worker.start()
        jobs = [worker.submit(Job(prompt=prompt(omni, q), sampling=FREE)) for q in QUESTIONS]
        tasks = [asyncio.create_task(collect(worker, job)) for job in jobs]
        await worker.stop()
        with pytest.raises(ShuttingDown):
            worker.submit(Job(prompt=prompt(omni, "No")))
        return [text_of(await task) for task in tasks]

    assert run(serve()) == [omni.engine.generate([prompt(omni, q)], FREE)[0].text for q in QUESTIONS]


def test_a_job_that_is_still_read_has_its_place_and_is_waited_for(omni: Omni) -> None:
    async def serve() -> str:
        worker = made(omni, max_batch=1, max_queue=1)
        worker.start()
        job, other = worker.accept(Job(sampling=FREE)), worker.accept(Job())
        assert worker.n_waiting == 2
        with pytest.raises(Overloaded):
            worker.accept(Job())
        worker.cancel(other)
        assert worker.n_waiting == 1
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0.1)
        assert not stopping.done()
        job.prompt = prompt(omni, "Hello!")
        text = text_of(await collect(worker, worker.submit(job)))
        await stopping
        return text

    assert run(serve()) == omni.engine.generate([prompt(omni, "Hello!")], FREE)[0].text


def test_a_bug_ends_the_jobs_it_touches_and_not_the_worker(omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(self: Batch) -> None:
        raise ValueError("secret")

    async def serve() -> str:
        worker = made(omni)
        worker.start()
        with monkeypatch.context() as patch:
            patch.setattr(Batch, "step", bug)
            with pytest.raises(WorkerFailed, match="could not finish") as caught:
                await collect(worker, worker.submit(Job(prompt=prompt(omni, "Hello!"), sampling=FREE)))
            assert "secret" not in str(caught.value)
        text = text_of(await collect(worker, worker.submit(Job(prompt=prompt(omni, "Hello!"), sampling=FREE))))
        await worker.stop()
        return text

    assert run(serve()) == omni.engine.generate([prompt(omni, "Hello!")], FREE)[0].text


def test_a_reply_without_words_is_a_notice_and_no_sound(own_omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    from omni.inference import engine

    monkeypatch.setattr(engine, "sample", lambda *arguments: own_omni.tokenizer.end_id)

    async def serve() -> Job:
        worker = made(own_omni)
        worker.start()
        job = worker.submit(Job(prompt=prompt(own_omni, "Hello!"), line=own_omni.speaker.line(None, Sampling())))
        assert await collect(worker, job) == []
        await worker.stop()
        return job

    job = run(serve())
    assert job.stopped == "end"
    assert ["nothing to say" in notice for notice in job.notices] == [True]


def test_a_reply_that_ends_in_signs_is_spoken_to_its_end(own_omni: Omni, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clause has been said long before the reply ends, and what follows adds nothing to say."""
    from omni.inference import engine

    clause, signs = "The circle is red and very round. ", "! " * 30
    ids = [*own_omni.tokenizer.encode(clause + signs), own_omni.tokenizer.end_id]
    monkeypatch.setattr(engine, "sample", lambda logits, sampling, seen, generator: ids[len(seen)])
    whole = own_omni.say(clause + signs)
    assert len(whole.codes) + len(own_omni.tokenizer.encode(clause)) < len(ids) < 100

    async def serve() -> list[Piece]:
        worker = made(own_omni)
        worker.start()
        sampling = Sampling(max_new_tokens=100)
        job = worker.submit(Job(prompt=prompt(own_omni, "Hello!", 100), sampling=sampling, line=own_omni.speaker.line(None, Sampling())))
        pieces = await asyncio.wait_for(collect(worker, job), 60)
        await worker.stop()
        assert worker._speech_batch is not None and worker._speech_batch.lines == []
        return pieces

    spoken = [piece.speech for piece in run(serve()) if piece.speech is not None]
    assert torch.equal(torch.cat([speech.codes for speech in spoken]), whole.codes)
    np.testing.assert_allclose(np.concatenate([speech.waveform for speech in spoken]), whole.waveform, atol=1e-3)
