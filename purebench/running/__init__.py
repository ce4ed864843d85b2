"""From a plan to records: `runner` hands out batches and alone writes, `tasks` cuts a cell into them, `evaluate`
attacks and judges one; `rehearsal`, `estimate` and `progress` stand around it. It may import everything but `report`,
`train` and the command line. Begin reading at `runner.run`, and for the numbers at `evaluate.execute`."""
