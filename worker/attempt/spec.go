package attempt

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
)

// Path is where the programs of exec functions are looked up, and the PATH
// they see.
const Path = "/usr/local/bin:/usr/bin:/bin"

// SpecError says which field of a Spec can't be run and why.
type SpecError struct {
	Field   string
	Problem string
}

func (e *SpecError) Error() string {
	return fmt.Sprintf("attempt: check %s: %s", e.Field, e.Problem)
}

// Validate checks all of the spec that needs neither the module nor the host.
// The error is a *SpecError.
func (s Spec) Validate() error {
	switch s.Kind {
	case Wasm:
		if s.Digest == "" {
			return &SpecError{"module", "a wasm variant needs one"}
		}
	case Exec:
		if err := validateCommand(s.Command); err != nil {
			return err
		}
	case HTTP:
		if err := validateURL(s.URL); err != nil {
			return err
		}
	default:
		return &SpecError{"runtime", fmt.Sprintf("%q is none of wasm, exec, http", string(s.Kind))}
	}
	if err := s.Limits.validate(); err != nil {
		return err
	}
	return ValidateEnv(s.Env)
}

func (l Limits) validate() error {
	switch {
	case l.Timeout <= 0:
		return &SpecError{"timeout", "must be above zero"}
	case l.MemoryMiB < 0:
		return &SpecError{"memory_mib", "must not be negative"}
	case l.ResultBytes < 0:
		return &SpecError{"result_bytes", "must not be negative"}
	case l.OpenFiles < 0:
		return &SpecError{"open_files", "must not be negative"}
	}
	return nil
}

func validateCommand(command []string) error {
	if len(command) == 0 || command[0] == "" {
		return &SpecError{"command", "an exec variant needs one"}
	}
	for _, arg := range command {
		if strings.IndexByte(arg, 0) >= 0 {
			return &SpecError{"command", "holds a NUL byte"}
		}
	}
	if strings.Contains(command[0], "/") && !filepath.IsAbs(command[0]) {
		return &SpecError{"command", fmt.Sprintf("%q is relative: give an absolute path, or a bare name found in %s", command[0], Path)}
	}
	return nil
}

func validateURL(raw string) error {
	if raw == "" {
		return &SpecError{"url", "an http variant needs one"}
	}
	u, err := url.Parse(raw)
	if err != nil {
		// The parse error repeats the address; a secret may be in it.
		return &SpecError{"url", "is not an address"}
	}
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return &SpecError{"url", "must start with http:// or https://"}
	case u.Hostname() == "":
		return &SpecError{"url", "names no host"}
	case u.User != nil:
		return &SpecError{"url", "must not carry a user or password"}
	case u.Fragment != "":
		return &SpecError{"url", "must not carry a #fragment"}
	}
	return nil
}

// ValidateEnv checks the variables of a manifest: names of letters, digits and
// underscores, sorted, each once, none of those the contract sets. The error
// is a *SpecError.
func ValidateEnv(env []Var) error {
	for i, v := range env {
		switch {
		case !validName(v.Name):
			return &SpecError{"env", fmt.Sprintf("%q is not a name of letters, digits and underscores", v.Name)}
		case v.Name == "PATH" || v.Name == "TRACEPARENT" || strings.HasPrefix(v.Name, "ISOBAR_"):
			return &SpecError{"env", v.Name + " is set by the runtime"}
		case strings.IndexByte(v.Value, 0) >= 0:
			return &SpecError{"env", "the value of " + v.Name + " holds a NUL byte"}
		case i > 0 && env[i-1].Name == v.Name:
			return &SpecError{"env", v.Name + " is given twice"}
		case i > 0 && env[i-1].Name > v.Name:
			return &SpecError{"env", v.Name + " is out of order: names must be sorted"}
		}
	}
	return nil
}

func validName(s string) bool {
	for i, c := range []byte(s) {
		letter := c == '_' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}
