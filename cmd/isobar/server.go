package main

import (
	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/server"
	"github.com/isobar-mesh/isobar/internal/telemetry"
)

func newServer(a *app) *cobra.Command {
	var f processFlags
	var noAuth bool
	c := &cobra.Command{
		Use: "server", Short: "Run one server of a cell, from a YAML file",
		Long: `Runs one server of a cell until it is interrupted.

The API listens on loopback only: clients are not authenticated yet, and whoever reaches
the API can run code. --insecure-no-auth lets it listen on an address that others reach.`,
		Args: args(0, 0),
	}
	f.add(c)
	c.Flags().BoolVar(&noAuth, "insecure-no-auth", false, "let the API listen on an address that others reach, without authentication")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.LoadServer(f.config, a.env, func(s *config.Server) { s.InsecureNoAuth = s.InsecureNoAuth || noAuth })
		if err != nil {
			return hinted(exitUsage, err, hintConfig)
		}
		ctx, cancel := f.context(cmd.Context(), a.stdin)
		defer cancel()
		log, tel, err := a.observe(ctx, cfg.Log, telemetry.Options{
			Service: "isobar-server", Instance: cfg.Name, Region: cfg.Region, Cell: cfg.Cell,
			Endpoint: cfg.OTLP.Endpoint, Protocol: cfg.OTLP.Protocol,
		})
		if err != nil {
			return err
		}
		defer flush(tel, log)
		return server.Run(ctx, cfg, log, tel)
	}
	return c
}
