"""Addresses and hosts as tables: what each is, and the ways in which it can be written."""

# The first and last address of each refused network, by class.
FORBIDDEN_ADDRESSES = {
    "an unspecified address": "0.0.0.0 0.255.255.255 ::",
    "a loopback address": "127.0.0.0 127.0.0.1 127.255.255.255 ::1 ::ffff:127.0.0.1 ::ffff:7f00:1",
    "a private address": "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.0 192.168.255.255 "
    "fc00:: fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff fec0::1 feff:: ::ffff:10.0.0.1 ::ffff:192.168.1.1",
    "a link-local address": "169.254.0.0 169.254.169.254 169.254.255.255 fe80:: fe80::1%eth0 febf::1 "
    "::ffff:169.254.169.254",
    "a carrier-grade NAT address": "100.64.0.0 100.127.255.255 ::ffff:100.64.0.1",
    "a multicast address": "224.0.0.0 224.0.0.1 239.255.255.255 ff00:: ff02::1 ffff::",
    "an IPv4-compatible address": "::2 ::127.0.0.1 ::8.8.8.8 ::ffff",
    "a NAT64 address": "64:ff9b:: 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1:: 64:ff9b:1:ffff::a00:1",
    "a Teredo address": "2001:: 2001:0:4136:e378:8000:63bf:80ff:fffe 2001:0:ffff::",
    "a 6to4 address": "2002:: 2002:7f00:1:: 2002:808:808:: 2002:ffff:: 192.88.99.0 192.88.99.255",
    "a special-purpose address": "192.0.0.0 192.0.0.9 192.0.0.255 2001:1::1 2001:1ff:ffff:: "
    "3fff:: 3fff:fff:: 5f00:: 5f00:ffff::",
    "a reserved address": "240.0.0.0 255.255.255.254 255.255.255.255 100::1 1fff:: 4000::1 9000:: e000::1 "
    "::ffff:0:7f00:1 fe00::1",
    "not a public address": "192.0.2.1 198.51.100.1 203.0.113.1 198.18.0.0 198.19.255.255 2001:db8::1",
}

PUBLIC_ADDRESSES = (
    "1.0.0.0 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.255.255 "
    "169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.88.98.255 192.88.100.0 192.167.255.255 "
    "192.169.0.0 223.255.255.255 2000::1 2001:200:: 2001:4860:4860::8888 2003:: 2606:4700::1111 3ffe:: "
    "::ffff:8.8.8.8 ::ffff:808:808"
)

# Each of these is 127.0.0.0/8 or ::1 to whoever dials it.
LOOPBACK_HOSTS = {
    "dotted": "127.0.0.1 127.255.255.254 127.0.0.1.",
    "short": "127.1 127.0.1",
    "decimal": "2130706433 2130706433.",
    "octal": "017700000001 0177.1 0177.0.1 00000177.1",
    "hexadecimal": "0x7f000001 0X7F000001 0x7f.1 0x7f.0.0.1 0x7F.0x0.0x0.0x1 127.0x1 127.0.0x1",
    "full stops of other scripts": "127\u30020\u30020\u30021 127\uff0e0\uff0e0\uff0e1 127\uff611",
    "version 6": "[::1] [0:0:0:0:0:0:0:1] [0000:0000:0000:0000:0000:0000:0000:0001] [::0001]",
    "mapped": "[::ffff:127.0.0.1] [::FFFF:7F00:1] [0:0:0:0:0:ffff:127.0.0.1]",
}

FORBIDDEN_HOSTS = LOOPBACK_HOSTS | {
    "unspecified": "0 0.0.0.0 0x0 00 0.0 [::]",
    "private": "10.0.0.1 10.1 167772161 0xa000001 012.1 172.16.0.1 192.168.1.1 192.168.257 3232235777 "
    "[fc00::1] [fd00:ec2::254] [fec0::1] [::ffff:10.0.0.1]",
    "link-local": "169.254.169.254 2852039166 0xa9fea9fe 169.16689662 [fe80::1] [::ffff:169.254.169.254]",
    "special": "100.64.0.1 192.0.0.8 192.88.99.1 198.18.0.1 203.0.113.7 224.0.0.1 240.0.0.1 [ff02::1] [2001:db8::1] "
    "[3fff::1] [5f00::1] [100::1]",
    "broadcast": "255.255.255.255 4294967295 0xffffffff 037777777777",
    "carried": "[::127.0.0.1] [::7f00:1] [64:ff9b::127.0.0.1] [64:ff9b::7f00:1] [64:ff9b:1::a00:1] [2002:7f00:1::] "
    "[2002:a00:1::1] [2001:0:4136:e378:8000:63bf:80ff:fffe] [::ffff:0:127.0.0.1]",
    "names of this machine": "localhost LOCALHOST localhost. a.localhost localhost.localdomain localhost4 localhost6 "
    "ip6-localhost ip6-loopback",
    "names of this network": "printer.local api.ns.svc.cluster.local metadata.google.internal internal "
    "host.docker.internal. router.home.arpa db.localdomain",
    "zones": "[fe80::1%25eth0] [fe80::1%eth0] [::1%25lo] [::ffff:127.0.0.1%251]",
    "percent-encoded": "%31%32%37.0.0.1 127.0.0.%31 127%2e0.0.1 %6c%6f%63alhost localhost%00.example",
    "other scripts": "\uff11\uff12\uff17.0.0.1 \u24f5.0.0.1 \uff4c\uff4f\uff43\uff41\uff4c\uff48\uff4f\uff53\uff54 "
    "\u24dbocalhost loc\u00adalhost",
    "malformed addresses": "0177.0.0.1 08.8.8.8 256.1.1.1 1.2.3.4.5 0x7f.0.0.0x 99999999999 4294967296 [127.0.0.1] "
    "[::1 ::1] [] [::1]x [::1].example [v1.x]",
    "malformed names": "127.0.0.1.. .127.0.0.1 a..b . .. ex!ample.com a,b *.example.com",
}


def words(table: dict[str, str]) -> list[str]:
    """All words of all rows."""
    return " ".join(table.values()).split()
