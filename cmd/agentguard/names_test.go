// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// The names of the world. Two of them share an address, as sites do.
const (
	resolverAddr = "198.18.0.53"
	sharedAddr   = "198.18.0.10"
	otherAddr    = "198.18.0.11"
)

var zone = map[string]string{
	"api.good.test.":    sharedAddr,
	"www.evil.test.":    sharedAddr,
	"a.cdn.test.":       otherAddr,
	"b.cdn.test.":       sharedAddr,
	"db.good.test.":     otherAddr,
	"inside.evil.test.": "10.0.0.1",
}

// serveNames serves DNS, HTTPS, HTTP and an echo on port 22 in the world, for
// all tests. It runs inside it.
func serveNames() error {
	answers := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg)
		r.SetReply(q)
		name := strings.ToLower(q.Question[0].Name)
		addr, ok := zone[name]
		switch {
		case !ok:
			r.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			r.Answer = append(r.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300}, A: net.ParseIP(addr),
			})
		}
		w.WriteMsg(r)
	})
	packets, err := net.ListenPacket("udp", resolverAddr+":53")
	if err != nil {
		return err
	}
	stream, err := net.Listen("tcp", resolverAddr+":53")
	if err != nil {
		return err
	}
	go (&dns.Server{PacketConn: packets, Handler: answers}).ActivateAndServe()
	go (&dns.Server{Listener: stream, Handler: answers}).ActivateAndServe()

	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	said := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, "flowing\n"); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		}
		fmt.Fprintf(w, "this is %s\n", r.Host)
	})
	for _, addr := range []string{sharedAddr, otherAddr} {
		secure, err := tls.Listen("tcp", addr+":443", &tls.Config{Certificates: []tls.Certificate{certificate}})
		if err != nil {
			return err
		}
		server := &http.Server{Handler: said, ErrorLog: log.New(io.Discard, "", 0)} // clients that are cut
		go server.Serve(secure)
		plain, err := net.Listen("tcp", addr+":80")
		if err != nil {
			return err
		}
		go server.Serve(plain)
		echo, err := net.Listen("tcp", addr+":22")
		if err != nil {
			return err
		}
		s := &sink{listener: echo}
		go s.serve()
	}
	return nil
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// fetchMain is a client for scripts that trusts every certificate:
//
//	fetch [-at ADDRESS] [-sni NAME] [-then URL] [-stream] URL
//
// -at connects there instead of where the URL's name leads, -then asks for
// another URL on the same connection, -stream goes on until an error.
func fetchMain() {
	var f fetcher
	flag.StringVar(&f.at, "at", "", "")
	flag.StringVar(&f.sni, "sni", "", "")
	flag.StringVar(&f.then, "then", "", "")
	flag.BoolVar(&f.stream, "stream", false, "")
	flag.Parse()
	began := time.Now()
	err := f.fetch(flag.Arg(0))
	if took := time.Since(began); err == nil || took < 2*time.Second {
		fmt.Fprintln(os.Stderr, "at once")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "fetch:", err)
		os.Exit(1)
	}
}

type fetcher struct {
	at, sni, then string
	stream        bool
}

func (f fetcher) fetch(url string) error {
	dialed := 0
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: f.sni},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if dialed++; dialed > 1 && f.then != "" {
				return nil, errors.New("the connection was not kept")
			}
			if f.at != "" {
				address = f.at
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	client := &http.Client{Transport: transport, Timeout: patience}
	if f.stream {
		client.Timeout = 0
	}
	host := ""
	for _, u := range []string{url, f.then} {
		if u == "" {
			continue
		}
		request, err := http.NewRequest(http.MethodGet, u, nil)
		if err != nil {
			return err
		}
		if host == "" {
			host = request.URL.Host
		}
		request.Host, request.URL.Host = request.URL.Host, host // the first one's connection
		if err := answerTo(client, request); err != nil {
			return err
		}
	}
	return nil
}

func answerTo(client *http.Client, request *http.Request) error {
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if _, err := io.Copy(os.Stdout, response.Body); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	return nil
}

// worldAddrs are the addresses that names have.
func worldAddrs() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(resolverAddr), netip.MustParseAddr(sharedAddr), netip.MustParseAddr(otherAddr)}
}
