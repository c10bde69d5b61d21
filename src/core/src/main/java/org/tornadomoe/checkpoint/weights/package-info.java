/** Weight matrices as they are stored: formats of quantised weights, and their rows as floats or int8. */
@NullMarked
package org.tornadomoe.checkpoint.weights;

import org.jspecify.annotations.NullMarked;
