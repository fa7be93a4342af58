"""Fine-tuning: from a user's scans to a model, a score and a page of pictures.

``data`` reads, checks and prepares the scans; ``training`` holds the machinery that every training
loop here shares; ``reporting`` scores and draws. Each imports only from those before it. Here is
what joins them: ``request`` (what is asked becomes a plan), ``arms`` (one training), ``judging``
(its predictions, scored), ``outcome`` (all that is written), ``stages`` (one after another) and
``finetuning``, the front door.
"""
