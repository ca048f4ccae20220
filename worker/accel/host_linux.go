package accel

import (
	"os"

	"github.com/isobar-mesh/isobar/internal/mesh"
)

func host(processors int) (mesh.Capacity, error) { return linuxHost(os.DirFS("/"), processors) }
