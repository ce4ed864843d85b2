"""From records to what a person looks at: `metrics`, `tables` and `papers` are pure functions of the records; `page` is all of it as one
HTML file (`chart`, `packed`, `web/`); `figures`, `costs`, `pictures` and `toy` draw, the first two with matplotlib (`drawing`), by way of
`sketches`; `imagery`, `strips` and `maps` figures of recorded images. It may import `records`, `plan`, `registry`, `spec`, `atomic`,
`errors`, and where pixels are made (`pictures` of `inputs` into `outputs`, `purified`, `replay`, `imagery`, `maps`, `toy`) `running`,
`engine`, `purifiers`, `scores`, `datasets`, `assets`. Begin reading at `tables.render`."""
