"""From records to what a person looks at: `metrics`, `tables` and `papers` are pure functions of the records; `figures`, `costs`,
`pictures` and `toy` draw, the first two with matplotlib (`drawing`), by way of `sketches`. It may import `records`, the engine and what
`pictures` and `costs` need of `running`. Begin reading at `tables.render`."""
