"""The ``umh`` command: one small module a command, and what they share.

``main`` parses and turns errors into exit codes, ``stopping`` makes signals end a command cleanly,
``messages`` writes to stderr, ``options`` holds shared arguments, ``cases`` those of scans with
labels or classes, ``planning`` turns inputs into jobs before any work, ``batch`` runs the jobs.
Results go to stdout or to files, all else to stderr.

A command module has ``add_arguments(parser)`` and ``run(args) -> int``, and imports torch, nibabel
and huggingface_hub only when it runs, so that ``umh --help`` needs none of them.

Exit codes: 0 done; 1 an error of this program; 2 bad input or usage, or a batch in which a file
failed; 3 network; 4 damaged or changed files; 130 and 143 after Ctrl-C and SIGTERM.
"""
