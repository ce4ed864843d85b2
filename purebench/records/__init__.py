"""What was computed: one checksummed line per image, appended and never lost. It may import `errors`, `atomic` and `spec`.
Begin reading at `store.Store`, which writes, `store.load`, which reads, and `frame.load`, the same as a DataFrame."""
