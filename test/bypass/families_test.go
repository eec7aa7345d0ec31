// SPDX-License-Identifier: Apache-2.0

package bypass

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// families are other protocols that a rule or a line of the policy opens.
func families() []control {
	four := at(allowed4, allowedPort)
	return []control{
		{name: "udplite-rule", what: "UDP-Lite where a rule names it", needs: []feature{udplite()}, allow: []string{"udplite://198.51.100.66:8443"}, try: func(a *attempt) error {
			s, err := open(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE)
			if err != nil {
				return err
			}
			defer s.close()
			return s.sendTo(a.payload(), 0, at(denied4, deniedPort))
		}, assist: arrives},
		{name: "sctp-rule", what: "SCTP where a rule names it", needs: []feature{sctp()}, allow: []string{"sctp://198.51.100.66:8443"}, try: func(a *attempt) error {
			s, err := open(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)
			if err != nil {
				return err
			}
			defer s.close()
			return a.connectAndSend(s, at(denied4, deniedPort))
		}, assist: arrives},
		{name: "dccp-rule", what: "DCCP where a rule names it", needs: []feature{dccp()}, allow: []string{"dccp://198.51.100.66:8443"}, try: func(a *attempt) error {
			s, err := open(unix.AF_INET, unix.SOCK_DCCP, unix.IPPROTO_DCCP)
			if err != nil {
				return err
			}
			defer s.close()
			if err := s.set(unix.SOL_DCCP, dccpService, 0); err != nil {
				return err
			}
			return a.connectAndSend(s, at(denied4, deniedPort))
		}, assist: arrives},
		{name: "mptcp-policy", what: "MPTCP where the policy allows it", needs: []feature{multipath()}, policy: []string{"mptcp: allow"}, try: func(a *attempt) error {
			s, err := open(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)
			if err != nil {
				return err
			}
			defer s.close()
			if err := a.connectAndSend(s, four); err != nil {
				return err
			}
			return s.readBack(a.payload())
		}},
		{name: "mptcp-own", what: "an own MPTCP server where the policy allows it", needs: []feature{multipath()}, policy: []string{"mptcp: allow"}, try: ownTCP(netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.1"))},
		{name: "raw-policy", what: "a raw socket where the policy allows it", class: netRaw, policy: []string{"raw: allow"}, try: func(a *attempt) error {
			s, err := open(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
			if err != nil {
				return err
			}
			defer s.close()
			if err := s.sendTo(echoRequest(false, a.payload()), 0, at(allowed4, 0)); err != nil {
				return err
			}
			answer := make([]byte, 1500)
			n, err := unix.Read(int(s), answer)
			if err != nil || !bytes.Contains(answer[:n], a.payload()) {
				return fmt.Errorf("the answer is not the request's: %w", err)
			}
			return nil
		}},
		{name: "multicast-policy", what: "joining a group, and sending to it, where the policy and a rule allow it", policy: []string{"multicast: allow"}, allow: []string{"udp://233.252.0.66:5353"}, try: udpSocket(group4, func(a *attempt, s sock) error {
			link, err := linkIndex()
			if err != nil {
				return err
			}
			if err := unix.SetsockoptIPMreqn(int(s), unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
				&unix.IPMreqn{Multiaddr: group4.As4(), Ifindex: int32(link)}); err != nil {
				return step("IP_ADD_MEMBERSHIP", err)
			}
			return s.sendTo(a.payload(), 0, at(group4, groupPort))
		}), assist: arrives},
	}
}

// arrives waits until the sink's servers have the token.
func arrives(t *trial) error {
	if _, ok := t.lab.outside.waitFor(t.token, 5*time.Second); !ok {
		return errors.New("it did not arrive within 5s")
	}
	return nil
}

// permissions are the other settings of a policy.
func permissions() []control {
	localhost := at(netip.MustParseAddr("127.0.0.1"), hostPort).String()
	return []control{
		{name: "loopback-host", what: "loopback: host opens the host's services", policy: []string{"loopback: host"}, try: func(a *attempt) error {
			return errors.Join(exchange("tcp", localhost, 3, 100)(a), exchange("udp", localhost, 3, 100)(a))
		}},
		{name: "loopback-rule", what: "a rule that names a service of the host", allow: []string{"127.0.0.1:7001", "udp://127.0.0.1:7001"}, try: func(a *attempt) error {
			return errors.Join(exchange("tcp", localhost, 3, 100)(a), exchange("udp", localhost, 3, 100)(a))
		}},
		{name: "mode-audit", what: "mode: audit lets everything through", policy: []string{"mode: audit"}, allow: []string{}, try: func(a *attempt) error {
			return errors.Join(
				exchange("tcp", at(denied4, deniedPort).String(), 3, 100)(a),
				exchange("udp", at(denied6, deniedPort).String(), 3, 100)(a),
				exchange("tcp", localhost, 3, 100)(a))
		}},
		{name: "rule-link-local", what: "a rule that names a link-local address", allow: []string{"[fe80::/10]:443"}, try: exchange("tcp", at(sinkLinkLocal.WithZone(hostLink), allowedPort).String(), 3, 100)},
		{name: "rule-everything", what: "0.0.0.0/0 and ::/0 allow everything outside", allow: []string{"0.0.0.0/0:*", "[::/0]:*", "udp://[::/0]:*"}, try: func(a *attempt) error {
			return errors.Join(
				exchange("tcp", at(denied4, deniedPort).String(), 1, 100)(a),
				exchange("tcp", at(denied6, deniedPort).String(), 1, 100)(a),
				exchange("udp", at(denied6, deniedPort).String(), 1, 100)(a))
		}},
		{name: "rule-broadcast", what: "a rule that names the broadcast address of the link", allow: []string{"udp://192.0.2.255:5353"}, try: udpSocket(subnet4, func(a *attempt, s sock) error {
			if err := s.set(unix.SOL_SOCKET, unix.SO_BROADCAST, 1); err != nil {
				return err
			}
			return s.sendTo(a.payload(), 0, at(subnet4, groupPort))
		}), assist: arrives},
	}
}

// toolControls are programs as people use them.
func toolControls() []control {
	const port = 8081
	page := []byte("this page is for you\n")
	return []control{
		{name: "http-client", what: "Go's HTTP client and a server outside", allow: []string{"198.51.100.10:8081"}, stage: webServer(at(allowed4, port), page),
			try: func(a *attempt) error { return get("http://"+at(allowed4, port).String()+"/", page) }},
		{name: "http-client6", what: "the same over IPv6", allow: []string{"[2001:db8:a::10]:8081"}, stage: webServer(at(allowed6, port), page),
			try: func(a *attempt) error { return get("http://"+at(allowed6, port).String()+"/", page) }},
		{name: "curl", what: "curl and a server outside", class: root, tools: []string{"curl"}, allow: []string{"198.51.100.10:8081"}, stage: webServer(at(allowed4, port), page),
			try: func(a *attempt) error { return curl("http://"+at(allowed4, port).String()+"/", string(page)) }},
		{name: "python-server", what: "Python's HTTP server in the task, asked by curl", class: root, tools: []string{"curl", "python3"}, try: pythonServer},
	}
}

// webServer serves one page in the sink for one trial.
func webServer(address netip.AddrPort, page []byte) func(*trial) error {
	return func(t *trial) error {
		var ln net.Listener
		if err := t.lab.sink.Do(func() (err error) {
			ln, err = net.Listen("tcp", address.String())
			return err
		}); err != nil {
			return err
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(page) })}
		served := make(chan error, 1)
		go func() { served <- server.Serve(ln) }()
		t.cleanup = append(t.cleanup, func() error {
			err := server.Close()
			<-served
			return err
		})
		return nil
	}
}

func curl(url, want string) error {
	body, err := exec.Command("curl", "--silent", "--show-error", "--max-time", "5", "--noproxy", "*", url).CombinedOutput()
	if err != nil {
		return fmt.Errorf("curl %s: %w: %s", url, err, body)
	}
	if !bytes.Contains(body, []byte(want)) {
		return fmt.Errorf("curl %s: %q", url, body)
	}
	return nil
}

func pythonServer(a *attempt) error {
	dir, err := os.MkdirTemp("", "bypass")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.WriteFile(filepath.Join(dir, "page"), a.payload(), 0o644); err != nil {
		return err
	}
	server := exec.Command("python3", "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", dir)
	out, err := server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	defer func() { server.Process.Kill(); server.Wait() }()
	line := make([]byte, 256)
	n, err := out.Read(line)
	if err != nil {
		return err
	}
	port := regexp.MustCompile(`port (\d+)`).FindSubmatch(line[:n])
	if port == nil {
		return fmt.Errorf("the server said %q", line[:n])
	}
	return curl(fmt.Sprintf("http://127.0.0.1:%s/page", port[1]), a.token)
}

// missingTool returns the first program that is not there. In CI that is a
// failure, but for guests, which have only what they were given.
func missingTool(t *testing.T, names []string) string {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			if !onDeveloperMachine() {
				t.Fatalf("find %s: %v", name, err)
			}
			return name
		}
	}
	return ""
}

// translated are addresses that the host itself translates on the way out.
func translated() []control {
	service := at(service4, allowedPort)
	allow := []string{"203.0.113.10:443", "udp://203.0.113.10:443"}
	return []control{
		{name: "nat-tcp", what: "TCP to a service address that the host translates", tools: []string{"nft"}, allow: allow, stage: translation, try: exchange("tcp", service.String(), 5, 1000)},
		{name: "nat-udp-connected", what: "connected UDP to it", tools: []string{"nft"}, allow: allow, stage: translation, try: exchange("udp", service.String(), 5, 1000)},
		{name: "nat-udp-unconnected", what: "UDP by sendto to it", tools: []string{"nft"}, allow: allow, stage: translation, try: udpSocket(service4, func(a *attempt, s sock) error {
			for range 5 {
				if err := s.sendTo(a.payload(), 0, service); err != nil {
					return err
				}
				if err := s.readBack(a.payload()); err != nil {
					return err
				}
			}
			return nil
		})},
		{name: "nat-tfo", what: "Fast Open to it", tools: []string{"nft"}, allow: allow, stage: translation, try: fastOpenSend(service)},
		{name: "nat-local", what: "a service address that the host translates to a service of its own", tools: []string{"nft"}, allow: []string{"203.0.113.10:7001", "udp://203.0.113.10:7001"}, stage: translation, try: func(a *attempt) error {
			to := at(service4, hostPort).String()
			return errors.Join(exchange("tcp", to, 3, 1000)(a), exchange("udp", to, 3, 1000)(a))
		}},
	}
}

// translation makes the host translate the service's address for one trial.
func translation(t *trial) error {
	rules := natRules("bypass",
		rewrite{service4, allowedPort, at(allowed4, allowedPort)}, rewrite{service4, hostPort, at(host4, hostPort)})
	inHost := func(commands string) error { return t.lab.host.Do(func() error { return nft(commands) }) }
	if err := inHost(rules); err != nil {
		return err
	}
	t.cleanup = append(t.cleanup, func() error { return inHost("delete table ip bypass") })
	return nil
}
