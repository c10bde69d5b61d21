/**
 * What a layer reports of its calls: a listener, and listeners that write to Micrometer and to the JDK's flight
 * recorder.
 */
@NullMarked
package org.tornadomoe.observe;

import org.jspecify.annotations.NullMarked;
