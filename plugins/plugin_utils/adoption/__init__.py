"""The Redis servers of a host that this bundle did not set up, described as host_vars for it.

`judgement.judge` makes a `model.Host` of a survey, with `directives` and `users` for the inputs of each server;
`rendering` writes that as the host's file and as lines for a terminal, with the templates beside it, and `files` puts
the file into a folder. Nothing here knows Ansible's tasks or connects to a host. Every text in a survey is data: none
becomes a template, a line of its own, or a path.
"""
