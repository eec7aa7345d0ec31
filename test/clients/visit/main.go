// SPDX-License-Identifier: Apache-2.0

// Command visit is a client in Go. It prints what is at a URL:
//
//	visit [-at ADDRESS] [-again] [-for TIME] URL
//
// -at connects there instead of where the name leads, -again visits twice, on
// connections of their own with one TLS session, and -for goes on visiting,
// on a new connection each time.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	at := flag.String("at", "", "")
	again := flag.Bool("again", false, "")
	duration := flag.Duration("for", 0, "")
	flag.Parse()
	begun := time.Now()
	sessions := tls.NewLRUClientSessionCache(8)
	for i := 0; i == 0 || *again && i == 1 || time.Since(begun) < *duration; i++ {
		if err := visit(flag.Arg(0), *at, sessions); err != nil {
			fmt.Fprintf(os.Stderr, "visit %d: %v\n", i+1, err)
			os.Exit(1)
		}
	}
}

func visit(url, at string, sessions tls.ClientSessionCache) error {
	transport := &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{ClientSessionCache: sessions},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if at != "" {
				address = at
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get(url)
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
