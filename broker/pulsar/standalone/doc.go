// Package standalone brings a real Apache Pulsar to a machine for development
// and tests: it fetches the official distribution through Maven, keeps it in
// the user's cache directory, and starts, kills and stops standalones, which
// are a broker, a bookie and a metadata store in one process on loopback.
//
// It is no way to run Pulsar in production: a standalone acknowledges what has
// not reached the disk, so its data outlive its process and not the machine.
package standalone
