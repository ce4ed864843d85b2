"""What can be called from Python beside `load`: `run`, the command with objects where it has names; `evaluate`, one call for images,
classifier and defense of your own; `module`, a defense for other people's attacks, and `judge`, for the images that these made. Nothing
is planned, run or printed here that the command does otherwise. It may import `errors`, `spec`, `foreign`, `records`, `engine`,
`classifiers`, `datasets`, `plan`, `running` and `report`. Begin reading at `run.run`."""
