"""How robust is this purification defense, really? The folders are the way of a number: what is said (`cli`, `spec`,
`registry`) becomes cells (`plan`), is run (`running`) on the parts and the `engine`, recorded (`records`) and shown
(`report`). docs/design.md is the map."""
