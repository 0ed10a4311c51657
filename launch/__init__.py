"""Start a run on a cluster (SLURM) or, with the same roles, on one machine.

A recipe says what is trained; this room says where: how many nodes learn under ``accelerate
launch``, how many serve completions with vLLM, and what happens when the time is up or something
fails. It renders a script from typed settings and leaves scheduling to SLURM.

    settings     what a launch may say, and what a site says once (YAML)
    job          settings and recipe together: roles, and each role's command
    script       the sbatch script, from templates/job.sh.j2
    submit       writes it and hands it to sbatch
    local        the same roles as child processes of this one

and what runs on the nodes, none of which imports torch:

    node         holds one role: passes notices on, leaves no process behind
    preflight    looks at a node before anything starts
    health       waits for the servers
"""
