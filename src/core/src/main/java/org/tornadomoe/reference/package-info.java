/** The definition: every stage of the layer in plain float64 Java, to be read and to test everything else against. */
@NullMarked
package org.tornadomoe.reference;

import org.jspecify.annotations.NullMarked;
