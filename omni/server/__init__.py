"""The HTTP server: OpenAI's interface in front of one worker that batches. Needs the extra `serve`."""
