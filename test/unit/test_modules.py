"""x"""

import time


def test_x(host, shared):
    t = time.process_time()
    print(host.modules.pack.keys())
    host.pillar = {"multimaster": {"keypair": {"pem": shared.pem, "pub": shared.pub}}}
    print(host.call("install_keypair"))
    print(time.process_time() - t)
    t = time.process_time()
    print(host.files())
    print(time.process_time() - t)
    t = time.process_time()
    print(host.state("keypair", "x", config_dir=str(host.config_dir)))
    print(host.call("check_config", "minion", {"master": ["a"]}))
    print(time.process_time() - t)
    t = time.process_time()
    print(
        host.state("declared", "x", declaration={"masters": [{"id": "a", "address": "192.0.2.1"}]})
    )
    print(
        host.state(
            "extended", str(host.root / "var/x"), files=["modules/multimaster.py"], test=True
        )
    )
    print(host.state("extended", str(host.root / "var/x"), files=["modules/multimaster.py"]))
    print(time.process_time() - t)
    t = time.process_time()
    print(host.modules["service.status"])
