// Package oracle judges walhook from outside. It compares what the application
// committed, what the receivers got, and what the tables say. The fault suite and
// the demo use it: both want that nothing is lost, invented, altered or repeated.
//
// The simulation in deliver keeps a judge of its own. It judges each request at the
// moment of sending, by leases and processes that only a simulated clock can see.
//
//	file      responsibility
//	endpoint  who is owed what: a reading of the contract beside the trigger's
//	journal   what the application and the receivers saw
//	request   one request as its receiver got it
//	receiver  an HTTP handler that plays the endpoints, and fills the journal
//	evidence  the journal and the tables, side by side
//	judge     pure: evidence → verdict
package oracle
