"""From records to what a person looks at: `metrics`, `tables` and `papers` are pure functions of the records; `page` is all of it as one
HTML file (`chart`, `packed`, `web/`); `pictures` and `toy` draw. It may import `records`, `plan`, the engine and what `pictures` and
`purified` need of `running`. Begin reading at `tables.render`."""
