"""What was computed: one checksummed line per image, appended and never lost. It may import `errors` alone. Begin
reading at `store.Store`, which writes, and `store.load`, which reads."""
