/**
 * Monitoring of a layer's calls: the listener interface, and listeners that write to Micrometer and to the JDK's flight
 * recorder.
 */
@NullMarked
package org.tornadomoe.observe;

import org.jspecify.annotations.NullMarked;
