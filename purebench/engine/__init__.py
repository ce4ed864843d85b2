"""Purifiers as chains of steps, walked and differentiated exactly within a memory budget (`chain`), their draws
(`noise`), and the defense that attacks and the judge talk to (`defense`). It may import `errors` and `spec`.
Begin reading at `chain.run`, then `chain.record`."""
