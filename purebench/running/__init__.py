"""From a request to records: `preflight` checks it and makes the plan, `runner` hands out batches and alone writes, `pools` is
where they are computed (this process, or workers), `tasks` cuts a cell into them, `evaluate` attacks and judges one;
`rehearsal`, `estimate` and `progress` stand around it. It may import everything but `report`, `train` and the command line.
Begin reading at `runner.run`, and for the numbers at `evaluate.execute`."""
