/** The CPU alone: the layer in Java's Vector API, or in plain loops where that module is absent. */
@NullMarked
package org.tornadomoe.cpu;

import org.jspecify.annotations.NullMarked;
