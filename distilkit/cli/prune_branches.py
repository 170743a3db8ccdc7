"""`distilkit prune-branches`."""

from distilkit.cli import options


def prune_branches(
    run: options.Run = None,
    member: options.Member = None,
    checkpoint: options.Checkpoint = None,
    data: options.DataRoot = None,
    output: options.Output = None,
    trust_code: options.TrustCode = False,
    runs: options.Runs = options.RUNS,
    json_output: options.Json = False,
) -> None:
    """The leader alone, in the stock architecture: model.safetensors and config.json.

    Proves on the test images that its logits are the leader's in the group, bit for bit.

    Examples:

      distilkit prune-branches

      distilkit prune-branches runs/one_resnet32-20260101T120000Z --output models/small
    """
    from distilkit.cli import console
    from distilkit.models.own import code_trusted
    from distilkit.workflows.deploy.prune_branches import prune_branches as workflow

    with code_trusted(trust_code, console.tell):
        document = workflow(
            run,
            runs,
            member=member,
            checkpoint=checkpoint,
            output=output,
            data_root=data,
            observer=console.TerminalObserver(),
        )
    if json_output:
        console.print_json(document)
        return
    parameters, flops = document["parameters"], document["flops"]
    console.print_table(
        f"{document['run']}: {document['member']} alone",
        ["", "before", "after"],
        [
            ["parameters", f"{parameters['before']:,}", f"{parameters['after']:,}"],
            ["FLOPs of one image", console.scientific(flops["before"]), console.scientific(flops["after"])],
        ],
        "FLOPs: 2 per multiply-add, convolutions and linear layers only",
    )
    console.print_line(f"its logits equal the student's in the group: difference {document['max_abs_difference']:g}")
    console.print_line(f"written to {document['output']}")
    if document["code"]:
        console.print_line(
            f"it needs the module {document['code']['module']}, and whatever opens it needs --trust-code"
        )
