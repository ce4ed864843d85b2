"""The small networks that ship or stand in, trained from nothing: `purebench train NAME`. It may import `networks`,
`scores`, `datasets`, `plan`, `atomic` and `errors`. Begin reading at `small.train`."""
