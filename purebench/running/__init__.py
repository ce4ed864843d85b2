"""From a request to records: `preflight` checks it and makes the plan, `runner` hands out batches and alone writes, `pools` is
where they are computed (this process, or workers), `tasks` cuts a cell into them, `evaluate` attacks and judges one;
`gate` holds a lower precision against float32 first; `rehearsal`, `cost`, `speed`, `sizes`, `estimate` and `progress` stand around it;
`brought` checks images of the user's; `doctor` says what would not work. It may import `errors`, `atomic`, `spec`, `foreign`, `registry`,
`records`, `engine`, `assets`, `datasets`, `scores`, `classifiers`, `purifiers`, `attacks` and `plan`. Begin reading at `runner.run`,
and for the numbers at `evaluate.execute`."""
