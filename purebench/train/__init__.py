"""The small networks that ship or stand in, trained from nothing: `purebench train NAME`. It may import `networks`,
`scores`, `datasets` and `plan`, not `running`. Begin reading at `small.train`."""
