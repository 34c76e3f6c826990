def test_x(host, shared):
    s=host.states.pack["__salt__"]
    print(type(s), s is host.modules, host.modules.pack["__salt__"] is s)
    host.pillar={"a":1}
    print(host.states.pack["__pillar__"], s.pack["__pillar__"], host.modules.pack["__pillar__"])
    print(host.modules["config.get"]("a"), type(s["multimaster.synced"]), s["multimaster.synced"].loader is s, s["multimaster.synced"].loader.pack["__pillar__"])
    print(host.modules._dict["multimaster.leave"].__globals__["__pillar__"].default)
    print(s._dict["multimaster.leave"].__globals__["__pillar__"].value)
