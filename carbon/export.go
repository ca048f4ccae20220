package carbon

import (
	"strings"
	"time"

	"github.com/isobar-mesh/isobar/internal/strictcsv"
)

// exportColumns are where an export of Electricity Maps has what is read of it.
type exportColumns struct {
	when, zone        int
	direct, lifeCycle int // -1 when missing
}

// recogniseExport reads the header of an hourly export of Electricity Maps, as
// the data portal offers it for download. Two spellings are about: that of
// 2021 to 2023, with "Zone Id" and "Carbon Intensity gCO₂eq/kWh (LCA)", and
// today's, with "Zone id" and "Carbon intensity gCO₂eq/kWh (Life cycle)". What
// else is in the file, shares of carbon-free and renewable energy, the source
// of the data and whether it is an estimate, is not read.
func recogniseExport(header []string) (exportColumns, bool) {
	c := exportColumns{when: -1, zone: -1, direct: -1, lifeCycle: -1}
	for i, name := range header {
		switch strings.ToLower(strings.ReplaceAll(name, "₂", "2")) {
		case "datetime (utc)":
			c.when = i
		case "zone id":
			c.zone = i
		case "carbon intensity gco2eq/kwh (direct)":
			c.direct = i
		case "carbon intensity gco2eq/kwh (life cycle)", "carbon intensity gco2eq/kwh (lca)":
			c.lifeCycle = i
		}
	}
	return c, c.when >= 0
}

// readExport reads the hours of an export; of one zone, or of several one below
// the other.
func readExport(t *strictcsv.Table, c exportColumns, kind Kind, factors Factors) ([]run, error) {
	if c.zone < 0 {
		return nil, t.Missing("Zone id")
	}
	value, name := c.lifeCycle, "Carbon intensity gCO₂eq/kWh (Life cycle)"
	if factors == Direct {
		value, name = c.direct, "Carbon intensity gCO₂eq/kWh (direct)"
	}
	if value < 0 {
		return nil, t.Missing(name)
	}
	if err := t.Unique(); err != nil {
		return nil, err
	}
	if kind != Average {
		return nil, t.FaultOf(value, name, "", ErrMixedKinds)
	}
	var all []run
	place := map[string]int{}
	for {
		more, err := t.Next()
		if err != nil || !more {
			return all, err
		}
		at, ok := exportTime(t.Field(c.when))
		if !ok {
			return nil, t.Fault(c.when, ErrBadTime)
		}
		zone := t.Field(c.zone)
		if zone == "" || strings.TrimSpace(zone) != zone {
			return nil, t.Fault(c.zone, ErrNoZone)
		}
		k, known := place[zone]
		if !known {
			k = len(all)
			zone = strings.Clone(zone)
			place[zone], all = k, append(all, run{zone: zone})
		}
		if cause := all[k].follow(at, t.Line()); cause != nil {
			return nil, t.Fault(c.when, cause)
		}
		x, cause := intensity(t.Field(value))
		if cause != nil {
			return nil, t.Fault(value, cause)
		}
		all[k].hours = append(all[k].hours, x)
	}
}

// exportTime reads "2024-01-01 00:00:00", also with a zone of +00:00, which
// tables that were written again have.
func exportTime(s string) (time.Time, bool) {
	at, err := time.Parse(time.DateTime, strings.TrimSuffix(s, "+00:00"))
	if err != nil {
		at, err = time.Parse("2006-01-02T15:04:05Z", s)
	}
	return at, err == nil && at.Equal(at.Truncate(time.Hour))
}
