"""From records to what a person looks at: `metrics`, `tables` and `papers` are pure functions of the records; `pictures`
and `toy` draw. It may import `records`, the engine and what `pictures` needs of `running`. Begin reading at
`tables.render`."""
