"""Starts the agent: the current one, or the one before it after three starts that failed. Set-up writes it once; no update touches it. At most 80 lines.
`serve` runs in this process, counted before anything of the agent is imported; `keep` does so in a child, and again when that dies. `agent/starts` has
where `agent/current` led, the agent preferred, and starts since one was last well: who is well for a minute writes itself and 0.
"""

import os, signal, sys, time  # fmt: skip

TRIES, LONGEST_PAUSE_S = 3, 60


def main(argv: list[str]) -> int:
    agents = os.path.join(os.environ["EDGE_AGENT_HOME"], "agent")
    if argv[:1] == ["keep"]:
        return keep()
    current, preferred, other, starts = read(agents)
    if argv[:1] != ["serve"]:
        return run(agents, [preferred, other], argv)
    time.sleep(min(LONGEST_PAUSE_S, 2 ** min(starts - 1, 10)) if starts else 0)
    write(agents, current, preferred, starts + 1)
    code = run(agents, [other if starts // TRIES % 2 else preferred], argv)
    if code != 70 and read(agents)[3] == starts + 1:  # it ended in peace, and said why: that was no failure
        write(agents, current, preferred, starts)
    return code


def read(agents: str) -> tuple[str, str, str, int]:
    current, previous = (os.path.basename(os.path.realpath(os.path.join(agents, link))) for link in ("current", "previous"))
    try:
        was, preferred, count = open(os.path.join(agents, "starts")).read().split()
        starts = int(count)
    except (OSError, ValueError):
        was, preferred, starts = "", "", 0
    if was != current or preferred not in (current, previous):  # another one was put there
        preferred, starts = current, 0
    other = previous if preferred == current else current
    return current, preferred, other if os.path.isdir(os.path.join(agents, other)) else preferred, starts


def write(agents: str, *words: object) -> None:
    try:
        with open(os.path.join(agents, ".starts"), "w") as stream:
            stream.write(" ".join(map(str, words)))
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(os.path.join(agents, ".starts"), os.path.join(agents, "starts"))
    except OSError:  # a full disk is no reason not to run
        sys.stderr.write("the start was not counted\n")


def run(agents: str, names: list[str], argv: list[str]) -> int:
    """The first of the agents that can be imported. Of what fails later, only `start` is tried anew: it does nothing twice."""
    folder, module = os.path.join(agents, names[0]), {"__name__": "agent"}
    sys.path[0], sys.argv = folder, [folder, *argv]
    try:
        exec(compile(open(os.path.join(folder, "__main__.py")).read(), folder, "exec"), module)
        return module["main"]()  # type: ignore[operator,no-any-return]
    except Exception as error:
        if len(set(names)) == 1 or not ("main" not in module or argv[:1] == ["start"] or isinstance(error, (ImportError, SyntaxError))):
            sys.excepthook(*sys.exc_info())
            return 70
    _ = [sys.modules.pop(name) for name in [*sys.modules] if name.startswith("edge_agent")]
    return run(agents, names[1:], argv)


def keep() -> int:
    while True:
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            return main(["serve"])
        signal.signal(signal.SIGTERM, lambda number, _: os.kill(child, number))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # there is no child to tell
        if code in (0, 1, -signal.SIGTERM) or not os.path.exists(__file__):  # asked to, said why not, or torn down
            return code
        time.sleep(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
