"""Export a run as a Hugging Face folder with a model card, or to a repository on the Hub.

    source      which weights of the run to export, and whether they are intact
    weights     builds one model from them: adapters merged, with the names of published models
    card        what was trained, with which data and methods, and the results
    remote      the Hub: what it refuses, what is retried, what is already there
    export      all steps in order
    background  exports every checkpoint while the run continues

The schema of recipes imports :mod:`rlvr.runs.hub_settings`, so this file imports nothing.
"""
