"""The report of a rebuild: what was measured, the judgement on it, and the report as text, HTML and JSON.

`inputs.read` makes a `model.Rebuild` of what a task was given, `judgement.judge` a `judgement.Report` of that, and
`rendering` writes it with the templates beside it. Nothing here knows Ansible, reads a clock, or touches a file other
than the templates.
"""
