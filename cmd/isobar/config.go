package main

import (
	"fmt"
	"os"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/isobar-mesh/isobar/internal/config"
	"github.com/isobar-mesh/isobar/internal/meshfile"
)

const hintConfig = "docs/config.md describes every field"

func newConfig(a *app) *cobra.Command {
	return group(&cobra.Command{Use: "config", Short: "Print and check configuration files"}, newConfigPrint(a), newConfigValidate(a), newConfigMesh(a))
}

func newConfigPrint(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "print server|worker [FILE]", Short: "Print the configuration in effect: defaults, file, environment",
		Args: args(1, 2), ValidArgs: []string{"server", "worker"},
	}
	c.RunE = func(_ *cobra.Command, args []string) error {
		// Printed before it is checked in full: what is missing can be filled in.
		var cfg any
		var err error
		switch args[0] {
		case "server":
			cfg, err = config.ReadServer(argument(args, 1), a.env)
		case "worker":
			cfg, err = config.ReadWorker(argument(args, 1), a.env)
		default:
			return unknownKind(args[0])
		}
		if err != nil {
			return hinted(exitUsage, err, hintConfig)
		}
		out, err := yaml.Marshal(cfg)
		if err != nil {
			return failed("this is a fault of isobar; please report it", "print configuration: %w", err)
		}
		_, err = a.stdout.Write(out)
		return err
	}
	return c
}

func newConfigValidate(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "validate server|worker|mesh FILE", Short: "Check a file, with the environment, without starting anything",
		Args: args(2, 2), ValidArgs: []string{"server", "worker", "mesh"},
	}
	c.RunE = func(_ *cobra.Command, args []string) error {
		var err error
		switch args[0] {
		case "server":
			_, err = config.LoadServer(args[1], a.env, nil)
		case "worker":
			_, err = config.LoadWorker(args[1], a.env, nil)
		case "mesh":
			_, err = readMesh(args[1])
		default:
			return unknownKind(args[0])
		}
		if err != nil {
			return hinted(exitUsage, err, hintConfig)
		}
		fmt.Fprintf(a.stderr, "%s is valid\n", args[1])
		return nil
	}
	return c
}

func newConfigMesh(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "mesh [FILE]", Short: "Print the mesh that `isobar dev` starts by default, or FILE with every default written out",
		Args: args(0, 1),
	}
	c.RunE = func(_ *cobra.Command, args []string) error {
		if len(args) == 0 {
			_, err := fmt.Fprint(a.stdout, meshfile.DefaultYAML())
			return err
		}
		m, err := readMesh(args[0])
		if err != nil {
			return hinted(exitUsage, err, hintConfig)
		}
		out, err := m.YAML()
		if err != nil {
			return failed("this is a fault of isobar; please report it", "print mesh: %w", err)
		}
		_, err = a.stdout.Write(out)
		return err
	}
	return c
}

func unknownKind(word string) error {
	return usage(fmt.Sprintf("unknown kind of configuration %q", word), "use server or worker (or mesh, with validate)")
}

func readMesh(path string) (*meshfile.Mesh, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read mesh: %w", err)
	}
	return meshfile.Parse(path, data)
}
