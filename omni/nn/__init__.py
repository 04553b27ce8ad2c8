"""The parts that every model here is built from."""
