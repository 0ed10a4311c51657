"""Export: a run becomes a Hugging Face folder with a model card, or a repository of the Hub.

    source      which weights of the run, and whether they are whole
    weights     one model out of them: adapters merged, in the names of published models
    card        what was done, with what, and what came of it
    remote      the Hub: what it may refuse, what is tried again, what is there already
    export      all of it, in order
    background  the same for every checkpoint, beside a run that goes on

The recipe's own schema imports :mod:`rlvr.hub.settings`, so nothing is imported here.
"""
