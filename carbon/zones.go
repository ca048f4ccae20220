package carbon

// zone is one grid of the generator.
type zone struct {
	name string
	// mean is the grid's published yearly mean, gCO2eq/kWh.
	mean float64
	// utcOffset is local solar time less UTC, hours.
	utcOffset float64
	shape     shape
}

// shape says how a grid's carbon moves about its mean, each part as a share of
// the mean. The shapes are plausible for the kind of grid, and made up: they
// are not fitted to any zone's measurements.
type shape struct {
	sun     float64 // depth of the dip at midday
	evening float64 // height of the peak after sunset
	weekend float64 // less on Saturday and Sunday
	winter  float64 // half the swing from summer to winter; negative: winter is in July
	wind    float64 // standard deviation of the weather
}

// zones lists the grids, sorted by name.
//
// Each mean is the "Grid carbon intensity (gCO2eq / kWh)" of a Google Cloud
// region on that grid in 2024, from GoogleCloudPlatform/region-carbon-info
// (Apache-2.0), file 2024.csv, commit 49f3f26b of 2025-12-03. That figure is
// annual, location-based, average and operational, so the zones compare.
func zones() []zone {
	// A large share of solar power; of wind; of water or nuclear power; of
	// coal and gas with little else.
	solar := shape{sun: 0.40, evening: 0.18, weekend: 0.06, winter: 0.10, wind: 0.10}
	windy := shape{sun: 0.12, evening: 0.10, weekend: 0.10, winter: 0.08, wind: 0.28}
	mixed := shape{sun: 0.22, evening: 0.12, weekend: 0.10, winter: 0.12, wind: 0.20}
	water := shape{sun: 0.02, evening: 0.05, weekend: 0.02, winter: 0.12, wind: 0.10}
	steady := shape{sun: 0.06, evening: 0.05, weekend: 0.04, winter: 0.05, wind: 0.06}
	coal := shape{sun: 0.08, evening: 0.03, weekend: 0.02, winter: 0.03, wind: 0.02}

	return []zone{
		{"AU-NSW", 497.50, 10, southern(solar)},         // australia-southeast1, Sydney
		{"BE", 103.37, 1, mixed},                        // europe-west1, Belgium
		{"BR-CS", 67.32, -3, southern(water)},           // southamerica-east1, São Paulo
		{"CA-ON", 58.56, -5, windy},                     // northamerica-northeast2, Toronto
		{"CA-QC", 5.48, -5, water},                      // northamerica-northeast1, Montréal
		{"DE", 275.82, 1, mixed},                        // europe-west3, Frankfurt
		{"ES", 89.04, 0, solar},                         // europe-southwest1, Madrid
		{"FI", 39.32, 2, windy},                         // europe-north1, Finland
		{"FR", 16.30, 1, mixed},                         // europe-west9, Paris
		{"GB", 105.94, 0, windy},                        // europe-west2, London
		{"IN-MH", 678.76, 5.5, coal},                    // asia-south1, Mumbai
		{"JP-TK", 452.85, 9, steady},                    // asia-northeast1, Tokyo
		{"NL", 208.81, 1, mixed},                        // europe-west4, Eemshaven
		{"PL", 642.88, 1, steady},                       // europe-central2, Warsaw
		{"SE-SE1", 2.73, 1, water},                      // europe-north2, Stockholm: the Swedish grid's
		{"SG", 366.85, 8, shape{sun: 0.02, wind: 0.01}}, // asia-southeast1, Singapore
		{"US-CAL-CISO", 169.28, -8, solar},              // us-west2, Los Angeles
		{"US-MIDA-PJM", 323.05, -5, steady},             // us-east4, Northern Virginia
		{"US-TEX-ERCO", 302.95, -6, windy},              // us-south1, Dallas
		{"ZA", 656.85, 2, southern(coal)},               // africa-south1, Johannesburg
	}
}

// southern puts the winter into the middle of the year.
func southern(s shape) shape {
	s.winter = -s.winter
	return s
}
