//! The core without I/O, played against a model of everything around it: PostgreSQL's WAL and slot, lapin, and a broker.
//!
//! [`lapin`] hands returns to whatever confirm completes next, as the crate does. [`broker`] knows what really happened to
//! each publish, [`account`] what the core may do next. [`world`] glues the core together as the session and the publisher do, and checks after each step what
//! must hold. A failure prints the shortest history that shows it.

#[cfg(test)]
mod account;
#[cfg(test)]
mod broker;
#[cfg(test)]
mod core_properties;
#[cfg(test)]
mod judge_properties;
#[cfg(test)]
mod lapin;
#[cfg(test)]
mod wal;
#[cfg(test)]
mod world;
