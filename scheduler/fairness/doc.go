// Package fairness decides which queue of a cell is served next. It is pure: time
// comes with each call, and equal calls give equal orders.
//
// Three shares are nested:
//
//   - Lanes share by weight: smooth weighted round robin over mesh.Lane.Weight.
//     A lane whose next queue was not served for long gains weight (Ageing), at
//     most up to the base weight of the lane above it, so the order of lanes
//     stays and a bound on the most urgent one does too (Turns).
//   - Tenants of a lane share by weighted dominant-resource fairness (Ghodsi et
//     al., NSDI 2011): next is the tenant whose largest share of any resource,
//     over its weight, is smallest. What counts is what runs now plus what ran of
//     late (Memory), so a tenant of many short tasks is charged too.
//   - Queues of a tenant in a lane take turns.
//
// The cost of a step grows with the logarithm of the tenants that have work in a
// lane. What waits in a queue and queues without work cost nothing.
package fairness
