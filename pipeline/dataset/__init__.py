"""A finished dataset: its manifest and card, exports of it for trainers, and the check of both against what they say.

`manifest` finishes and opens a dataset, `card` is what people read of it, `export` and `verify` are the commands,
`checks` what verify asks of one file, `processes` how both work on several files at once.
"""
