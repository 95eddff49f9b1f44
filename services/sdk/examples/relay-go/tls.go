package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// certificates is mutual TLS with the gateway, where PATCHBAY_TLS_DIR is set. The files are read at each
// handshake, for they are renewed.
type certificates struct {
	directory string
	name      string
}

func certificatesOfEnvironment() certificates {
	return certificates{os.Getenv("PATCHBAY_TLS_DIR"), cmp.Or(os.Getenv("PATCHBAY_TLS_NAME"), "patchbay")}
}

func (c certificates) load() (tls.Certificate, *x509.CertPool, error) {
	own, err := tls.LoadX509KeyPair(filepath.Join(c.directory, "tls.crt"), filepath.Join(c.directory, "tls.key"))
	if err != nil {
		return own, nil, err
	}
	authority, err := os.ReadFile(filepath.Join(c.directory, "ca.crt"))
	if err != nil {
		return own, nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(authority) {
		return own, nil, errors.New("ca.crt holds no certificate")
	}
	return own, pool, nil
}

// server returns what a server shows and demands.
func (c certificates) server() (credentials.TransportCredentials, error) {
	if c.directory == "" {
		return insecure.NewCredentials(), nil
	}
	current := func(*tls.ClientHelloInfo) (*tls.Config, error) {
		own, pool, err := c.load()
		if err != nil {
			return nil, err
		}
		return &tls.Config{
			Certificates: []tls.Certificate{own}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
			MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"},
		}, nil
	}
	// What is wrong now is told at the start.
	found, err := current(nil)
	if err != nil {
		return nil, err
	}
	found.GetConfigForClient = current
	return credentials.NewTLS(found), nil
}

// client returns what a client shows and demands, whatever the address is.
func (c certificates) client() (credentials.TransportCredentials, error) {
	if c.directory == "" {
		return insecure.NewCredentials(), nil
	}
	own, pool, err := c.load()
	if err != nil {
		return nil, err
	}
	return credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{own}, RootCAs: pool, ServerName: c.name, MinVersion: tls.VersionTLS12,
	}), nil
}
