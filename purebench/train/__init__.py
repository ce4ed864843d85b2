"""The small networks that ship or stand in, trained from nothing: `purebench train NAME`. It may import the parts and
the engine, not `running`. Begin reading at `small.train`."""
