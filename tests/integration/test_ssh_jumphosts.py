"""SSH sessions through a jump host."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.domain.errors import (
    HostKeyRefused,
    HostLost,
    HostUnreachable,
)
from tests.support.sshd import Sshd, free_port, make_key, public
from tests.support.sshsessions import connected, refused, soon
from workers.connection.ssh import SshConnector


def test_through_a_jump_host_with_the_same_checks(sshd: Sshd, tmp_path: Path) -> None:
    jump = Sshd(tmp_path / "jump").start()
    try:
        key = str(sshd.user_key)
        (jump.where / "authorized_keys").write_text((sshd.where / "user_key.pub").read_text())
        known = tmp_path / "kh"
        host = sshd.host(proxy_jump=f"root@127.0.0.1:{jump.port}", known_hosts=str(known))
        error = refused(host, HostKeyRefused)  # the target is pinned, the jump host is not known
        assert (error.code, "jump host" in error.step) == ("host_key_unknown", True)
        known.write_text(f"[127.0.0.1]:{jump.port} {public(jump.host_keys['ed25519'])}\n")
        with connected(host) as connection:
            assert connection.run(["echo", "through"], soon()).stdout == b"through\n"
            assert jump.sessions()
        wrong = host.model_copy(update={"host_key": public(make_key(tmp_path / "wrong"))})
        assert refused(wrong, HostKeyRefused).code == "host_key_changed"
        closed = host.model_copy(update={"port": free_port()})
        assert refused(closed, HostUnreachable).code == "channel_refused"
        # By a name of the inventory: its own entry counts, pin and all.
        named = SshConnector({"bastion": jump.host(name="bastion", key=key)})
        by_name = named.connect(host.model_copy(update={"proxy_jump": "bastion"}), soon())
        assert by_name.run(["true"], soon()).status == 0
        by_name.close()
        # The jump host dies under the session.
        with connected(host) as connection:
            process = connection.open_process(["sleep", "1000"], soon())
            jump.stop()
            with pytest.raises(HostLost):
                process.read_line(100, soon())
    finally:
        jump.stop()
