"""What runs on a host: one program, Python 3.6 standard library only, importing nothing of ours but itself.

`workers/agentbundle.py` makes one source text of this package; docs/agent-protocol.md is its contract.

    main            builds the Environment, says hello, runs a session
    session         one request at a time; requests are in reading, changing and hosting
    keeper          the detached process that alone loads, holds, spins and jumps (link: the session's end of
    it) claims          fences, locks and the record of who may change this host
    kexec, counter, kmsg, image, jump, staging, shutdown, facts, devices   one thing of the host each
    collectors      one file a check

Every path and every system call comes from one Environment object: tests build another one, and no
environment variable or option can.
"""
