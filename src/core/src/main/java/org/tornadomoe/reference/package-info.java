/**
 * The definition: every stage of the layer in plain float64 Java, for reading, and for testing everything else against
 * it.
 */
@NullMarked
package org.tornadomoe.reference;

import org.jspecify.annotations.NullMarked;
