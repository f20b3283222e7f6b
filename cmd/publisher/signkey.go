package main

import (
	"fmt"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/internal/secret"
)

type signkeyCmd struct{}

func (c *signkeyCmd) Run(a *app) error {
	signer, err := secret.LoadOrCreateSigner(secret.NewFolder(a.Keys))
	if err != nil {
		return &fleet.Error{Class: fleet.Usage, Err: err}
	}
	_, err = fmt.Fprintln(a.stdout, signer.Public())
	return err
}
